// The queue, for operators: what runs, what waits in order of its turn, what is over; cancel and retry.

import { begin, button, byId, request, row, say, size, when } from "./common.js";

const EVERY = 2000; // milliseconds
const PARTS = { preparing: "preparing", waiting: "waiting" };
let timer = null;

function line(ticket) {
  const act = (text, path, method) => button(text, async () => { await request(path, { method }); await show(); });
  const place = `ticket/${ticket.ticketId}`;
  const live = ["waiting", "preparing", "ready"].includes(ticket.state);
  const action = ticket.state === "done" ? "" :
    live ? act("Cancel", place, "DELETE") : act("Retry", `${place}/retry`, "POST");
  const state = ticket.reason ? `${ticket.state}: ${ticket.reason}` : ticket.state;
  const made = row([when(ticket.asked), ticket.owner, ticket.kind, String(ticket.files), size(ticket.bytes),
    String(ticket.priority), state, action]);
  made.dataset.ticket = ticket.ticketId;
  return made;
}

async function show() {
  const tickets = await (await request("tickets")).json();
  for (const part of ["preparing", "waiting", "done"]) {
    const chosen = tickets.filter((ticket) => (PARTS[ticket.state] || "done") === part);
    byId(`count-${part}`).textContent = `(${chosen.length})`;
    byId(part).replaceChildren(...chosen.map(line));
  }
}

begin((me) => {
  clearInterval(timer);
  ["preparing", "waiting", "done"].forEach((part) => byId(part).replaceChildren());
  if (!me) return;
  if (me.role !== "operator") { say("only operators see the whole queue; these are your own tickets"); }
  const look = () => show().catch((error) => say(error.message));
  look();
  timer = setInterval(look, EVERY);
});
