"""How wide each layer is: gradient descent on widths, budgets that they must meet, baselines."""
