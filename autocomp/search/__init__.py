"""The search: what to try next, trying it, and remembering it."""
