// Reads what the page shows out of an AuditEvent (FHIR R4), as clinical_ser.audit.exports.fhir_resources makes them.
// The one idea: the last entity carries the record itself; what is shown beyond type and outcome is read from there.

const KIND = "clinical-ser:audit-event-kind";
const RESULT = "clinical-ser:result";
const OUTCOMES = { 0: "success", 4: "refused", 8: "failed" };

/** Return {index, time, kind, outcome, role, purpose, who, name, client, result, model, flags, software, state, payload, resource}. */
export function readEvent(resource) {
  const entities = resource.entity ?? [];
  const details = entities.at(-1)?.detail ?? [];
  const detail = type => details.find(one => one.type === type);
  const leaf = decoded(detail("leaf")) ?? {};
  const payload = decoded(detail("payload"));
  const asking = (resource.agent ?? []).find(agent => agent.requestor && agent.role) ?? (resource.agent ?? []).find(agent => agent.requestor);
  const index = detail("index")?.valueString;
  return {
    index: /^\d{1,19}$/.test(index ?? "") ? Number(index) : null,
    time: resource.recorded,
    kind: (resource.subtype ?? []).find(one => one.system === KIND)?.code ?? leaf.kind ?? "",
    outcome: OUTCOMES[resource.outcome] ?? "",
    role: leaf.role ?? "",
    purpose: leaf.purpose ?? "",
    who: payload?.actor?.id ?? asking?.who?.identifier?.value ?? "",
    name: payload?.actor?.name ?? asking?.name ?? "",
    client: payload?.actor?.client ?? asking?.network?.address ?? "",
    result: entities.map(one => one.what?.identifier).find(one => one?.system === RESULT)?.value ?? "",
    model: leaf.model ?? "",
    flags: leaf.flags ?? [],
    software: leaf.software ?? "",
    state: detail("state")?.valueString ?? "",
    payload,
    resource,
  };
}

function decoded(detail) {
  if (typeof detail?.valueBase64Binary !== "string") return null;
  try {
    const bytes = Uint8Array.from(atob(detail.valueBase64Binary), letter => letter.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
}

/** Return where the next page goes on, null where there is none. */
export function nextPage(bundle) {
  const next = (bundle.link ?? []).find(link => link.relation === "next");
  return next ? new URL(next.url, location.href).searchParams.get("page") : null;
}

/** Return the AuditEvents of a searchset. */
export const eventsOf = bundle => (bundle.entry ?? []).map(entry => entry.resource).filter(resource => resource?.resourceType === "AuditEvent").map(readEvent);

/** Whether the server ended the page before it had looked at everything. */
export const isCut = bundle => (bundle.entry ?? []).some(entry => entry.search?.mode === "outcome");
