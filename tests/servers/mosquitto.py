"""A real mosquitto server for tests, started as a process on a free loopback port."""
