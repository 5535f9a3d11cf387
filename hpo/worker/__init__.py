"""Worker processes: claim, train, keep the lease, finish."""
