"""Worker processes, which claim trials, train them, keep their leases and finish them."""
