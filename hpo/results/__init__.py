"""What a study gives: the final benchmark, the report, exports, notes and figures."""
