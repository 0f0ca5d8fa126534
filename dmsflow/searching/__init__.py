"""How wide each layer is: gradient descent on widths, shrinking them to budgets, baselines."""
