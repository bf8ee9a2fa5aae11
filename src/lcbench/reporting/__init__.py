"""Tables from run directories: terminal, Markdown, CSV, JSON. No torch; everything from data or models is escaped."""
