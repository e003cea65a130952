"""The paper's experiments: protocols, runs, reports. Only the CLI, `scale` and `rmadapter.records`
import it."""
