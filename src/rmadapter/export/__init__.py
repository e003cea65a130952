"""Export a run as a folder that answers without this package."""

FACTS = "export.json"  # describes an exported folder
