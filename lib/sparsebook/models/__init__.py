"""Shared networks, with real weights where an installed package carries them."""
