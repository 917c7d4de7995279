"""Official scoring rules as pure functions on strings and numbers; each names its evaluator."""
