"""How fast the curvature engine is beside its peers: `make bench` measures, stores rows, draws."""
