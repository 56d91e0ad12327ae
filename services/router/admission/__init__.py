"""Who runs, who waits, and who is refused early: `queue` decides, `gate` awaits it."""
