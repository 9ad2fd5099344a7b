"""The init: what pid 1 does before it becomes supervisord, the services, and the run's record."""
