"""Top floor: flags in, one call, a table or one JSON object out. No arithmetic, no heavy import at module level."""
