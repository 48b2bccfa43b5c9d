"""MQTT: the client that acknowledges by hand, and the embedded broker."""
