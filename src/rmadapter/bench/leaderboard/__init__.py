"""One page of records from any source, beside the figures that papers print."""
