"""What a reader sees: tables, figures and the rendered book, views of records."""
