"""What everything stands on: places, files that are whole or absent, locks, processes, errors."""
