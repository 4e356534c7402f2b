// The page works without this script. With it, the page reads itself again when something has
// changed, and can pin, remove and fetch images.
'use strict';

document.documentElement.classList.add('js');
const byID = (id) => document.getElementById(id);

// replace puts new content into an element. What was open stays open, and the focus stays.
function replace(element, html) {
  const open = [...element.querySelectorAll('details[open]')].map((d) => d.id);
  const scrolled = [...element.querySelectorAll('.scroll')].map((s) => s.scrollTop);
  const focus = element.contains(document.activeElement) ? document.activeElement.id : '';
  element.innerHTML = html;
  for (const id of open) {
    if (byID(id)) byID(id).open = true;
  }
  element.querySelectorAll('.scroll').forEach((s, n) => { s.scrollTop = scrolled[n] || 0; });
  if (focus && byID(focus)) byID(focus).focus();
}

async function part(name, query) {
  query.set('part', name);
  const answer = await fetch('/?' + query, { cache: 'no-store' });
  if (!answer.ok) throw new Error('the page can\'t be read: ' + answer.status);
  return answer.text();
}

// busyIn reports whether somebody uses what would be replaced.
function busyIn(element) {
  const at = document.activeElement;
  return element.contains(at) && !at.id || /^(INPUT|BUTTON)$/.test(at.tagName) && element.contains(at);
}

let reading = false;
let listRead = Date.now();
const listEvery = 10000;

// refresh reads what has changed. The list of images is read less often.
async function refresh() {
  if (reading || document.hidden) return;
  reading = true;
  try {
    replace(byID('live'), await part('live', new URLSearchParams()));
    if (Date.now() - listRead > listEvery && !busyIn(byID('images'))) await refreshImages(false);
  } catch (err) {
    sayConnection('not connected');
  } finally {
    reading = false;
  }
}

async function refreshImages(fresh) {
  const query = new URLSearchParams(location.search);
  if (fresh) query.set('fresh', '1');
  const html = await part('images', query);
  const said = byID('said');
  replace(byID('images'), html);
  if (said && said.textContent) byID('said').replaceWith(said);
  listRead = Date.now();
}

function sayConnection(text) { byID('connection').textContent = text ? text + ' ·' : ''; }

// listen follows the events while somebody looks at the page.
let source = null;
function listen() {
  if (document.hidden) {
    if (source) source.close();
    source = null;
    return;
  }
  if (source) return;
  source = new EventSource('/api/v1/events');
  source.addEventListener('stats', () => { sayConnection('live'); refresh(); });
  source.onerror = () => sayConnection('not connected');
}
document.addEventListener('visibilitychange', listen);
listen();

// The list wasn't there yet.
async function untilListed() {
  while (byID('waiting')) {
    await new Promise((done) => setTimeout(done, 1000));
    await refreshImages(false).catch(() => {});
  }
}
untilListed();

function say(text, bad) {
  const said = byID('said');
  said.textContent = text;
  said.classList.toggle('bad', !!bad);
}

// ask opens a dialog, and returns whether it was agreed to.
function ask(dialog) {
  return new Promise((done) => {
    dialog.returnValue = '';
    dialog.addEventListener('close', () => done(dialog.returnValue === 'ok'), { once: true });
    dialog.showModal();
  });
}

const tokenKey = 'hubcache-token';

// use uses a verb of the API, and asks for the token when it is needed.
async function use(method, path, body) {
  for (;;) {
    const headers = { 'X-Hubcache-Admin': '1' };
    const token = sessionStorage.getItem(tokenKey);
    if (token) headers.Authorization = 'Bearer ' + token;
    if (body) headers['Content-Type'] = 'application/json';
    const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: 'no-store' });
    if (answer.status !== 401) return answer;
    byID('token-error').textContent = token ? 'This was not the right token.' : '';
    sessionStorage.removeItem(tokenKey);
    byID('token').value = '';
    if (!await ask(byID('ask-token'))) throw new Error('Nothing was changed: the token is needed.');
    sessionStorage.setItem(tokenKey, byID('token').value.trim());
    byID('token').value = '';
  }
}

// done returns the answer of a verb, or throws what it says is wrong.
async function done(answer) {
  const doc = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(doc.error || 'The server answers with status ' + answer.status + '.');
  return doc;
}

// size is a number of bytes for people.
function size(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  for (; n >= 1000 && at < units.length - 1; at++) n /= 1024;
  return (at && n < 99.95 ? n.toPrecision(3) : Math.round(n)) + ' ' + units[at];
}

const path = (reference) => encodeURI(reference).replace(/[?#]/g, encodeURIComponent);

const verbs = {
  async pin(reference) {
    await done(await use('PUT', '/api/v1/pins/' + path(reference)));
    return reference + ' is pinned: it is not evicted.';
  },
  async unpin(reference) {
    await done(await use('DELETE', '/api/v1/pins/' + path(reference)));
    return reference + ' is no longer pinned.';
  },
  async purge(reference) {
    const at = '/api/v1/images/' + path(reference);
    const plan = await done(await use('DELETE', at + '?dry_run=1'));
    byID('purge-name').textContent = reference;
    byID('purge-what').textContent = size(plan.freed_bytes) + ' become free' +
      (plan.kept_bytes ? '; ' + size(plan.kept_bytes) + ' stay, because other images need them' : '') + '. The next pull fetches it again.';
    if (!await ask(byID('ask-purge'))) return '';
    const doc = await done(await use('DELETE', at));
    return reference + ' was removed: ' + size(doc.freed_bytes) + ' are free again.';
  },
};

byID('images').addEventListener('click', async (event) => {
  const button = event.target.closest('button[data-verb]');
  if (!button) return;
  button.disabled = true;
  const { verb, reference } = button.dataset;
  try {
    const text = await verbs[verb](reference);
    if (text) {
      say(text);
      await refreshImages(true);
      refresh();
    }
  } catch (err) {
    say(err.message, true);
  } finally {
    button.disabled = false;
    const again = [...document.querySelectorAll('button[data-reference]')].find((b) => b.dataset.reference === reference);
    if (again) again.focus();
  }
});

// What is searched for is looked up without a new page, so that the token and the place stay.
byID('images').addEventListener('submit', async (event) => {
  const form = event.target;
  event.preventDefault();
  if (form.id === 'warm') {
    warm(form);
    return;
  }
  const query = new URLSearchParams(new FormData(form));
  if (!query.get('q')) query.delete('q');
  show(query);
});

byID('images').addEventListener('click', (event) => {
  const link = event.target.closest('a[href^="/?"], a[href^="/#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  show(new URL(link.href).searchParams);
});

// show shows another part of the list, under its own address.
function show(query) {
  history.pushState(null, '', '/?' + query + '#images');
  refreshImages(false).catch((err) => say(err.message, true));
}
addEventListener('popstate', () => refreshImages(false).catch(() => {}));

// warm fetches an image and says how far it is, as the server does.
async function warm(form) {
  const reference = form.elements.reference.value.trim();
  const button = form.querySelector('button');
  button.disabled = true;
  say('Fetching ' + reference + ' …');
  try {
    const answer = await use('POST', '/api/v1/warm', { references: [reference] });
    if (!answer.ok) await done(answer);
    const blobs = new Map();
    let bytes = 0;
    let wrong = '';
    let said = Date.now();
    const last = await lines(answer, (event) => {
      if (event.plan) bytes = event.plan.missing_bytes;
      if (event.blob) blobs.set(event.blob.digest, event.blob.received);
      if (event.result && event.result.error) wrong = event.result.error;
      if (bytes && Date.now() - said > 1000) {
        const got = [...blobs.values()].reduce((sum, n) => sum + n, 0);
        say('Fetching ' + reference + ': ' + Math.min(100, Math.round(100 * got / bytes)) + ' % of ' + size(bytes));
        said = Date.now();
      }
    });
    if (!last || !last.done) throw new Error('The server ended before ' + reference + ' was there.');
    if (last.error) throw new Error(wrong || last.error);
    say(reference + ' is cached.');
    await refreshImages(true);
  } catch (err) {
    say(err.message, true);
  } finally {
    button.disabled = false;
    if (byID('warm')) byID('warm').querySelector('button').disabled = false;
  }
}

// lines reads a stream of JSON lines, and returns the last one.
async function lines(answer, each) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  let last = null;
  for (;;) {
    const { value, done: ended } = await reader.read();
    if (ended) return last;
    text += value;
    const whole = text.split('\n');
    text = whole.pop();
    for (const line of whole.filter((l) => l.trim())) {
      last = JSON.parse(line);
      each(last);
    }
  }
}
