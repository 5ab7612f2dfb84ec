// Updates the page of the system: asks for it again every second, and changes only what differs, so that focus, scrolling and
// selections stay. While nobody looks at the page, nothing is asked for.
'use strict';

const EVERY_MS = 1000;
const LIMIT_MS = 5000;

const root = document.documentElement;
const main = document.querySelector('main');
const notice = document.getElementById('notice');
const said = document.getElementById('said');
const pause = document.getElementById('pause');
let tag = null;
let heard = new Date();
let paused = false;
let ended = false;

// Makes `old` look like `fresh`, and keeps the elements that are there.
function morph(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const known = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const have = next.id ? known.get(next.id) : at && !at.id && at.nodeName === next.nodeName ? at : null;
    if (!have || have.nodeName !== next.nodeName) {
      old.insertBefore(document.importNode(next, true), at);
      continue;
    }
    if (have === at) at = at.nextSibling;
    else old.insertBefore(have, at);
    morph(have, next);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function update(text) {
  const fresh = new DOMParser().parseFromString(text, 'text/html');
  if (fresh.documentElement.dataset.version !== root.dataset.version) {
    ended = true;
    tell('This page is older than the program that answers. Reload it.');
    return;
  }
  const focused = document.activeElement;
  const summary = () => document.getElementById('summary').textContent;
  const before = summary();
  morph(main, fresh.querySelector('main'));
  // an element that was moved has lost the focus
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  if (document.title !== fresh.title) document.title = fresh.title;
  if (summary() !== before) said.textContent = summary();
}

function tell(text) {
  if (notice.textContent !== text) notice.textContent = text;
  root.classList.toggle('old', text !== '');
}

async function ask() {
  try {
    const headers = tag ? { 'if-none-match': tag } : {};
    const answer = await fetch('/', { headers, signal: AbortSignal.timeout(LIMIT_MS) });
    if (answer.status === 200) {
      update(await answer.text());
      tag = answer.headers.get('etag');
    } else if (answer.status !== 304) {
      throw new Error(String(answer.status));
    }
    heard = new Date();
    if (!ended) tell('');
  } catch {
    tell(`No answer since ${heard.toLocaleTimeString()}: the process may have ended. What is below is of that time.`);
  }
}

async function run() {
  while (!ended) {
    if (!paused && !document.hidden) await ask();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

pause.hidden = false;
pause.addEventListener('click', () => {
  paused = !paused;
  pause.textContent = paused ? 'Go on updating' : 'Pause updates';
});
run();
