"""Simulated riders, attendants, Odoo, stations and ARM: clients of the platform like any other."""
