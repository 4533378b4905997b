"use strict";
// A slider over the radius of an attack. Frames are cells of sheets (see frames.js): nothing is computed here.
(() => {
  const root = document.getElementById("walk");
  root.innerHTML = `
    <form class="walk-asked">
      <label>Picture <select id="walk-picture"></select></label>
      <label>Map <select id="walk-map"></select></label>
      <label for="walk-radius">Radius of the attack</label>
      <input type="range" id="walk-radius" min="0" step="1" value="0">
      <output for="walk-radius" id="walk-radius-said"></output>
    </form>
    <div class="walk-panels">
      <figure><figcaption>Attacked picture</figcaption><div><img id="walk-seen"></div><p></p></figure>
      <figure><figcaption>Its map</figcaption><div><img id="walk-moved"></div><p></p></figure>
      <figure><figcaption>Map under noise</figcaption><div><img id="walk-noise"></div><p></p></figure>
    </div>
    <p id="walk-said" aria-live="polite"></p>
    <details><summary>All radii of this picture and map, as a table</summary><table id="walk-table"></table></details>
    <p class="walk-about" id="walk-about"></p>`;

  const at = (id) => document.getElementById(`walk-${id}`);
  const [picture, map, radius] = ["picture", "map", "radius"].map(at);
  const share = (value) => (value > 0 && value < 0.01 ? "under 1 %" : `${(100 * value).toFixed(0)} %`);
  const sure = (row) => `${row.class}, probability ${row.probability.toFixed(2)}`;
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  const fill = (select, names) => {
    const before = select.value;
    select.replaceChildren(...names.map((name) => new Option(capital(name), name)));
    select.value = names.includes(before) ? before : names[0];
  };

  // The cell of a sheet in this column and row fills its frame.
  const show = (image, file, alt, [column, columns], [row, rows], below) => {
    if (image.getAttribute("src") !== file) image.src = file;
    image.alt = alt;
    image.style.width = `${100 * columns}%`;
    image.style.transform = `translate(${(-100 * column) / columns}%, ${(-100 * row) / rows}%)`;
    image.parentElement.nextElementSibling.textContent = below;
  };

  const tell = () => {
    const shown = walks.find((one) => one.name === picture.value);
    const index = Math.max(0, shown.walks.findIndex((one) => one.map === map.value));
    const walk = shown.walks[index], place = Number(radius.value), levels = shown.radii[place];
    const now = walk.attack[place], noise = walk.noise[place], count = shown.walks.length;
    const column = [place, shown.radii.length], sheets = "slider/";
    const size = `${levels} of 255 grey levels`, left = (row) => `${share(row.stay)} of the leading ${walk.places} stay`;
    radius.setAttribute("aria-valuetext", size);
    at("radius-said").textContent = `${levels}/255`;
    show(at("seen"), sheets + shown.pictures, `${shown.name}, attacked by at most ${size}; it looks like the clean one`,
      column, [index, count], sure(now));
    show(at("moved"), sheets + shown.maps, `${walk.map} of the attacked picture: ${left(now)}`,
      column, [2 * index, 2 * count], left(now));
    show(at("noise"), sheets + shown.maps, `${walk.map} under noise of the same size: ${left(noise)}`,
      column, [2 * index + 1, 2 * count], left(noise));
    at("said").textContent = `Radius ${levels}/255: ${sure(now)}. The attack leaves ${share(now.stay)} of the`
      + ` ${walk.leading} leading ${walk.places}, noise of the same size ${share(noise.stay)} (${sure(noise)}).`;
  };

  const tabulate = (shown, walk) => {
    const line = (tag, cells) => {
      const row = document.createElement("tr");
      row.append(...cells.map((cell) => Object.assign(document.createElement(tag), { textContent: cell })));
      row.querySelectorAll("th").forEach((head) => { head.scope = "col"; });
      return row;
    };
    const heads = ["Radius", "Class under attack", "Probability", "Leaders that stay", "Under noise"];
    const lines = shown.radii.map((levels, i) => line("td", [`${levels}/255`, walk.attack[i].class,
      walk.attack[i].probability.toFixed(2), share(walk.attack[i].stay), share(walk.noise[i].stay)]));
    at("table").replaceChildren(line("th", heads), ...lines);
  };

  const choose = () => {
    const shown = walks.find((one) => one.name === picture.value);
    fill(map, shown.walks.map((one) => one.map));
    radius.max = shown.radii.length - 1;
    at("about").textContent = `Network: ${shown.network}. Picture: ${shown.credit}.`;
    tabulate(shown, shown.walks.find((one) => one.map === map.value));
    tell();
  };

  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  picture.addEventListener("change", choose);
  map.addEventListener("change", choose);
  radius.addEventListener("input", tell);
  fill(picture, walks.map((one) => one.name));
  choose();
})();
