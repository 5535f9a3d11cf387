"""The results of a study: the final benchmark, the report, exports, notes and figures."""
