// The page for downloads: ask for files, follow each ticket by its events, fetch what is ready.

import { begin, button, byId, guarded, request, row, say, size, when } from "./common.js";

const followed = new Map();

// Call `told` with each event of a ticket; EventSource cannot send a token, hence by hand.
async function follow(id, told, signal) {
  let last = 0;
  while (!signal.aborted) {
    const headers = { Accept: "text/event-stream", "Last-Event-ID": String(last) };
    try {
      const answer = await request(`ticket/${id}/status`, { headers, signal });
      if (answer.status === 204) return;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const blocks = (text + part.value).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s)));
          if (!fields.data) continue;
          last = Number(fields.id);
          told(JSON.parse(fields.data));
        }
      }
    } catch (error) {
      if (!signal.aborted) say(error.message);
    }
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
  }
}

function add(ticket) {
  const state = document.createElement("span");
  const progress = document.createElement("progress");
  const actions = document.createElement("span");
  const line = row([when(ticket.asked), String(ticket.files), size(ticket.bytes), state, progress, actions]);
  line.dataset.ticket = ticket.ticketId;
  byId("tickets").prepend(line);
  const show = (told) => {
    state.textContent = told.reason ? `${told.state}: ${told.reason}` : told.state;
    progress.max = told.total || 1;
    progress.value = told.state === "ready" || told.state === "done" ? progress.max : told.done || 0;
    progress.hidden = !["waiting", "preparing", "ready"].includes(told.state);
    actions.replaceChildren(...choices(ticket.ticketId, told.state));
  };
  show(ticket);
  const ending = new AbortController();
  followed.set(ticket.ticketId, ending);
  if (!ticket.over) follow(ticket.ticketId, show, ending.signal);
}

function choices(id, state) {
  const cancel = button("Cancel", () => request(`ticket/${id}`, { method: "DELETE" }));
  if (state === "ready") return [button("Fetch", () => fetchAll(id)), cancel];
  return ["waiting", "preparing"].includes(state) ? [cancel] : [];
}

// Have the browser fetch all volumes, by a signed link: it sends no token, and resumes by itself.
async function fetchAll(id) {
  const { url } = await (await request(`ticket/${id}/link`, { method: "POST" })).json();
  const { volumes, source } = await (await request(`ticket/${id}/status`)).json();
  if (source === "deleted") say("the files have been deleted since; this copy is kept until it expires");
  volumes.forEach((volume, index) => {
    const link = document.createElement("a");
    link.href = `${url}&volume=${index + 1}`;
    link.download = volume.name;
    link.click();
  });
}

byId("ask").addEventListener("submit", guarded(async (event) => {
  event.preventDefault();
  const form = new FormData(byId("ask"));
  const paths = form.get("paths").split("\n").map((path) => path.trim()).filter(Boolean);
  const body = { paths, priority: Number(form.get("priority")) };
  if (form.get("keep")) body.keep = form.get("keep");
  const { ticketId } = await (await request("download", { method: "POST", body })).json();
  add(await (await request(`ticket/${ticketId}/status`)).json());
}));

begin(async (me) => {
  for (const ending of followed.values()) ending.abort();
  followed.clear();
  byId("tickets").replaceChildren();
  if (!me) return;
  const mine = (await (await request("tickets")).json()).filter((ticket) => ticket.owner === me.name);
  mine.sort((a, b) => a.asked - b.asked).slice(-20).forEach(add);
});
