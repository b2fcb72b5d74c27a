"""A run and its devices as notebook widgets: Python, JavaScript and CSS side by side. Import the modules; nothing is loaded from here."""
