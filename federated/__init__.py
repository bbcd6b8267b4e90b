"""Training across hospitals: sites add up statistics that nobody can take apart, and the sums train one model."""
