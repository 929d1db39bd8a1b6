"""Model folders: loading, chat templates, checks and export. The only place chat text is rendered."""
