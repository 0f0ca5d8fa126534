"""Many runs from one plan: networks, budgets, methods and seeds as rows, in any number of processes."""
