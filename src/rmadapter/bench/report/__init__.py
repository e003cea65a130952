"""Tables, statistics and figures from records: what the runs of the bench say together."""
