"""How wide each layer should be: the search, its budgets, and the baselines it has to beat."""
