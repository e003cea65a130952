"""The paper's experiments: protocols, peers, runs and reports. Nothing outside imports this."""
