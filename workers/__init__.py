"""Everything that executes jobs; the only folder in which torch may be imported."""
