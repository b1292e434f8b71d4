"""What the hot paths cost, measured on this machine."""
