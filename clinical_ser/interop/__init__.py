"""Results in the formats of other systems: FHIR R4 for record systems (`fhir`).

The one idea: formats are made here from results and audit records alone; nothing in this room knows a server, a file or a network.
"""
