"""Records of any origin as one page, beside what papers print."""
