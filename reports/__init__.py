"""What people read: reports made from evidence, in HTML and PDF, from one description of their contents."""
