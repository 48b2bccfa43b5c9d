"""A real postgres server for tests, started as a process on a free loopback port."""
