"""A comparison as people take it away: tables, drawings, files, and the cases side by side. Data hold 0 to 1, texts points."""
