"""The life of an item on an agent: claim, plan, prepare, create, start, watch, finish."""
