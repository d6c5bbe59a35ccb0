"""Commands for whoever writes a chapter, and the gates that hold its rules."""
