"""The HTTP server: screenings as a service for record systems and for people, every answer recorded before it is given."""
