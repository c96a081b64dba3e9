"""The fault matrix: one fault after another under load, and after each the question whether anything was lost."""
