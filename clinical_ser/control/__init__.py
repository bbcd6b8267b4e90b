"""Change under control: the plan, the gate, who signs, and the switch."""
