"""Tables, sessions, migrations, views and every statement that changes rows."""
