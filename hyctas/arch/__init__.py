"""Describe networks as data: operators, genotypes, and the nodes they are lowered to. No torch here."""
