"""Model folders and chat templates. The only place where chat text is rendered."""
