"""Recovery: runs of an earlier life of this agent, or of another one that was lost."""
