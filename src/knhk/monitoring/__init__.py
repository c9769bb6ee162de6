"""Whether the service keeps what was promised: objectives, error budgets, and who hears when it does not."""
