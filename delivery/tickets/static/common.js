// What both pages share: the login, requests in its name, and rows of a table.
// The access token lives in this page alone; the refresh token in this tab, so that a reload stays logged in.

let access = null;

export const byId = (id) => document.getElementById(id);
export const say = (text) => { byId("message").textContent = text; };

export async function request(path, options = {}) {
  let answer = await send(path, options);
  if (answer.status === 401 && await refresh()) answer = await send(path, options);
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Error(typeof body.detail === "string" ? body.detail : `refused: ${answer.status}`);
  }
  return answer;
}

function send(path, { method = "GET", body, headers = {}, ...rest }) {
  const all = { Accept: "application/json", ...headers };
  if (access) all.Authorization = `Bearer ${access}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  return fetch(path, { method, headers: all, body: body === undefined ? undefined : JSON.stringify(body), ...rest });
}

function keep(tokens) {
  access = tokens ? tokens.access_token : null;
  if (tokens) sessionStorage.setItem("refresh", tokens.refresh_token);
  else sessionStorage.removeItem("refresh");
}

async function refresh() {
  const token = sessionStorage.getItem("refresh");
  if (!token) return false;
  const answer = await send("login/refresh", { method: "POST", body: { token } });
  keep(answer.ok ? await answer.json() : null);
  return answer.ok;
}

async function show(changed) {
  const me = await request("me").then((answer) => answer.json()).catch(() => null);
  byId("login").hidden = Boolean(access);
  byId("logout").hidden = !access;
  byId("who").textContent = me ? `${me.name} (${me.role})` : "";
  changed(me);
}

// Begin: `changed` is called with who is logged in, or null, now and whenever that changes.
export async function begin(changed) {
  const credentials = () => Object.fromEntries(new FormData(byId("login")));
  const login = guarded(async () => {
    keep(await (await request("login", { method: "POST", body: credentials() })).json());
    byId("login").reset();
    await show(changed);
  });
  byId("login").addEventListener("submit", (event) => { event.preventDefault(); login(); });
  byId("register").addEventListener("click", guarded(async () => {
    if (!byId("login").reportValidity()) return;
    await request("register", { method: "POST", body: credentials() });
    await login();
  }));
  byId("logout").addEventListener("submit", guarded(async (event) => {
    event.preventDefault();
    await request("logout", { method: "POST" });
    keep(null);
    await show(changed);
  }));
  await refresh();
  await show(changed);
}

// Return `action` such that what goes wrong in it is said on the page.
export function guarded(action) {
  return async (...given) => {
    say("");
    try { await action(...given); } catch (error) { say(error.message); }
  };
}

export function row(cells) {
  const line = document.createElement("tr");
  for (const cell of cells) line.insertCell().append(cell);
  return line;
}

export function button(text, action) {
  const made = document.createElement("button");
  made.textContent = text;
  made.addEventListener("click", guarded(action));
  return made;
}

export const when = (seconds) => new Date(seconds * 1000).toLocaleString();

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < units.length - 1; unit += 1) bytes /= 1000;
  return `${bytes.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}
