"""Encoders for others: a self-contained folder, and thin adapters for the interfaces of the field."""
