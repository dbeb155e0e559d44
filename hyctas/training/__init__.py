"""Train supernets and networks, and evaluate them."""
